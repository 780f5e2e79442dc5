"""When requests arrive in an open loop: decided beforehand, whatever the server does. Pure."""

from collections.abc import Iterator
from random import Random


def poisson(rate_per_s: float, seconds: float, seed: int) -> Iterator[float]:
    """Arrivals of a Poisson process, in seconds from its begin, up to ``seconds``: gaps are exponential with mean
    1 ÷ rate, each independent of the others. The same seed gives the same arrivals.

    Raises:
        ValueError: the rate is not above 0.
    """
    if not rate_per_s > 0:
        raise ValueError(f"a rate of {rate_per_s} a second")

    draw = Random(seed)
    at_s = draw.expovariate(rate_per_s)
    while at_s < seconds:
        yield at_s
        at_s += draw.expovariate(rate_per_s)

"""What a person sees: the live table of a run, the plan, the verdict, the lists."""

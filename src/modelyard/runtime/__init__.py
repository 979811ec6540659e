"""Runtime: the shell around the decision core. It executes, observes and reports; it decides nothing."""

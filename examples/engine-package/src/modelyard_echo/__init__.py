"""An engine for Modelyard that repeats what it is asked."""

"""The decision core: pure, synchronous, no IO and no clock. Events in, actions out."""

"""Answer first, reason later: the recipe that makes checkpoints for Verdict. See training/README.md."""

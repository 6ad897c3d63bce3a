"""What the scores of a study say: normalised means, intervals, and verdicts on claims."""

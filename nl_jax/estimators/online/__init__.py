"""Learning while time goes on: credit in a loop over time by what is carried forward, not back."""

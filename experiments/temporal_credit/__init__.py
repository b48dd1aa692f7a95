"""Credit through time: what each rule reaches on three tasks, what it costs, and what the audit says of its updates."""

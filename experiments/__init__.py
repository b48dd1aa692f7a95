"""One script a figure: a frozen config, `run(config)`, a plot and a command line."""

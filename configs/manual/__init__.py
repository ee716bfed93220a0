"""Makes man pages and shell completions from the commands' own parsers: `make docs`."""

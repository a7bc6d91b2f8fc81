"""The command line. Each module holds the commands on one subject; `main` puts them together.

`options` holds options that several commands share, and `console` what the terminal shows.
"""

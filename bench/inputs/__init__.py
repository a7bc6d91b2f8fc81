"""Input from outside: names and files that are checked before they are used."""

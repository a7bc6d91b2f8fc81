"""Reading of exported files, which may come from anywhere: their networks, what they cost, and how they predict."""

"""Tables and figures of a study, one file each, and the renderers that they share."""

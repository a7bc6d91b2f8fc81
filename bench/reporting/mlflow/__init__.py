"""The MLflow view of studies, and its user interface."""

"""The MLflow view of studies, and the user interface that shows it.

An `Entry` is one MLflow run as it should be; it is built from the run folders. A `Mirror` brings MLflow's runs of one
study up to date with its entries, a `Tracker` does so for a store, and a `View` is a saved page of MLflow's interface.
"""

"""MLflow: runs, registered versions, the pyfunc, the log of aliases, exports."""

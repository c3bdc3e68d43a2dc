"""Where `MetricsLoggerCallback` puts what it is told: files, dashboards, a DeepFabric server."""

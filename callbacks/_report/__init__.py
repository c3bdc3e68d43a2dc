"""What `RunReportCallback` is made of: the record of a run, and the pages that show it."""

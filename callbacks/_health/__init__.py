"""What `TrainingHealthCallback` is made of: detectors that are fed numbers, and the parts that touch a run."""

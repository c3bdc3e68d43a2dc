"""What `SampleGenerationCallback` is made of: choosing turns, encoding their prompts, generating and replaying."""

"""From scenario files to simulators."""

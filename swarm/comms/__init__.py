"""What entities say to each other: radios, links, statistics of reception."""

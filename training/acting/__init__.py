"""Who acts: policies for teams, collecting experience, what episodes returned."""

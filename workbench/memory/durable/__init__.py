"""The store of the memories of agents: durable items with text, vector, time and links, and their history."""

"""The network: embedding, optional attention, fitting, short-range repulsion, and the potential made of them."""

"""How a stage is optimised: one loop for all, and the parts it is made of."""

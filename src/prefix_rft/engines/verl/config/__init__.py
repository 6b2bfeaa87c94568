"""Configuration of the cluster engine, on top of verl's."""

"""What a compressed network is: shapes of layers, policies, the plain quantizer, and building the network."""

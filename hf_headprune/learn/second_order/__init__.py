"""Second-order costs during training: units are removed and the rest refitted, then training goes on."""

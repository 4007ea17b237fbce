"""One file an attack, and the suite that names them."""

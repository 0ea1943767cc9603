"""What the methods are made of. A part never imports a method."""

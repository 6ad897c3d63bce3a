"""Does a search fit, and how long does it take? Asked of shapes alone, before anybody spends pod hours."""

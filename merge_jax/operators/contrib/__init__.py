"""Further methods, one small file each, with the interface and the shared tests of the others."""

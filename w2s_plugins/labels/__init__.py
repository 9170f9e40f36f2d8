"""Labels that replace or stand beside the true ones: noise, selection, stored outputs of a teacher."""

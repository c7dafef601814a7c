"""How good a mask is without ground truth: predicted Dice, intervals with a guarantee, shift, and a verdict."""

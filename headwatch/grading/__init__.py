"""Grade mathematical answers: extract the answer, compare it with the right one. Knows no model and no trainer."""

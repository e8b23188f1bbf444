"""What carried a decision: weights that survived, and what the class loses without parts."""

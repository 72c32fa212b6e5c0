"""The numerical ground: softmax and cross-entropy, convex solvers, inner folds."""

"""What a network costs, exactly and as a differentiable term, and the budgets that limit it."""

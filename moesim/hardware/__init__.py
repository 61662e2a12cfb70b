"""What the machine is: cards, links, model shapes, and what an operation costs on them."""

"""Published pools as data: NeuCRaB, published accuracies, the demo."""

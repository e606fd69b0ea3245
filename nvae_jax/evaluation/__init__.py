"""What a trained model is asked: likelihoods, samples, reconstructions and pictures of them."""

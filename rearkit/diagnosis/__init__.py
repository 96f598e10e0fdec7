"""The article's diagnosis of a trained model: exposure bias, embedding awareness, decode consistency."""

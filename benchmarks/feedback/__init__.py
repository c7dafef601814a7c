"""What feedback brings: reviewed patients, measurements, and what is returned with and without them."""

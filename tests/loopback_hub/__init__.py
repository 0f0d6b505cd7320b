"""The Hugging Face Hub's own protocol, served from memory on 127.0.0.1; `hub_server.HubServer` is its front."""

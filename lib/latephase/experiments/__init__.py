"""What one chapter needs: its apparatus, a module a chapter; nothing else imports it."""

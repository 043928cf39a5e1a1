"What people use: pages and commands."

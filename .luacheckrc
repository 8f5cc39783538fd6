std = "lua54"
max_line_length = 120
unused_args = false
files["spec"] = { std = "+busted" }

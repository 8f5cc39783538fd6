-- Files, as whole texts.
local M = {}

-- What is in the file @path; nil, why not.
function M.read(path)
  local file, err = io.open(path, "rb")
  if not file then return nil, err end
  local text = file:read("a")
  file:close()
  return text
end

-- Makes @text what is in it, or, with @mode "ab", adds it. Raises.
function M.write(path, text, mode)
  local file = assert(io.open(path, mode or "wb"))
  assert(file:write(text))
  assert(file:close())
end

return M

-- Files of Lua code that code at a prompt may name.
local M = {}

local SIZE_MAX = 1 << 20

--- The text of the file @path; nil, why not. Of a file alone: a pipe may never answer.
function M.read(path)
  local st = require("luv").fs_stat(path)
  if st and st.type ~= "file" then return nil, path .. " is no file" end
  local text, err = require("sym.sys").read_file(path, SIZE_MAX)
  if not text then return nil, tostring(err) end
  return text
end

return M

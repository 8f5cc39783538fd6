-- What neither a history nor a log may keep: join tokens and private keys. Pure.
local M = {}

local TOKEN = "[Ss][Yy][Mm][Tt][Kk][Nn]%-[%w%-]+"
local PEM = "%-%-%-%-%-BEGIN [%w ]*"

--- Whether @text holds a token or the beginning of a PEM block.
function M.is_in(text)
  return text:find(TOKEN) ~= nil or text:find(PEM) ~= nil
end

--- @text without its tokens, and without all behind the beginning of a PEM block.
function M.redact(text)
  local pem = text:find(PEM)
  if pem then text = text:sub(1, pem - 1) .. "(PEM)" end
  return (text:gsub(TOKEN, "(token)"))
end

return M
